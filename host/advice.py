"""What to do next: conclusions from the figures of an analysis."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["advice", "thresholds"]

Facts = Mapping[str, Any]


def thresholds(facts: Facts, min_psnr: float) -> list[dict[str, Any]]:
    """Return cost and quality by threshold, for each sampler that was run with more than one.

    Parameters
    ----------
    facts
        As from :func:`ditto.host.analysis.analyze`.
    min_psnr
        Least ratio, in decibels, for a threshold to be suggested: against the float model's images
        if there are any, otherwise against those without threshold.
    """
    against = facts["against"]
    result = []
    for key in dict.fromkeys((run["steps"], run["eta"]) for run in facts["runs"]):
        runs = [run for run in facts["runs"] if (run["steps"], run["eta"]) == key]
        runs.sort(key=lambda run: run["tau"])
        if len(runs) < 2:
            continue
        curve = []
        for run in runs:
            compared = run["quality"].get(against, {})
            curve.append(
                {
                    "tau": run["tau"],
                    "zero": run["means"]["temporal"]["zero"],
                    "bit_operations": run["means"]["bit_operations"]["whole_run"],
                    "cycles": run["cycles"] and run["cycles"]["best"],
                    "psnr": compared.get("psnr"),
                    "ssim": compared.get("ssim"),
                }
            )
        # Without a ratio the images are equal, or there is nothing to compare them with: tau is 0.
        good = [p["tau"] for p in curve if p["psnr"] is None or p["psnr"] >= min_psnr]
        result.append(
            {
                "steps": key[0],
                "eta": key[1],
                "sampler": runs[0]["sampler"],
                "against": against,
                "min_psnr": min_psnr,
                "curve": curve,
                "suggested": max(good) if good else None,
            }
        )
    return result


def advice(facts: Facts) -> list[str]:
    """Return advice in whole sentences, the most important first."""
    plain = [run for run in facts["runs"] if run["tau"] == 0] or list(facts["runs"])
    result = [_verdict(run) for run in plain]
    result += _modes(plain)
    result += _thresholds(facts)
    result += _late_steps(plain[0])
    result += _state(plain[0])
    result += _rest(facts, plain[0])
    result.append(
        f"Scales are {facts['scales']}. Max-abs scales leave more differences zero and often give "
        "the better images; a percentile uses the 8 bits better where outliers are rare. "
        "Quantize with the other rule (ditto quantize --method) and compare both."
    )
    return result


def _layers(found: Sequence[Any]) -> str:
    return f"{len(found)} layer{'' if len(found) == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _verdict(run: Facts) -> str:
    bits = run["means"]["bit_operations"]
    saved = 1 - bits["temporal"] / bits["activation"] if bits["activation"] else 0.0
    text = (
        f"{run['sampler']}: differences take {_percent(bits['temporal'])} of the bit operations of "
        f"a dense 8-bit array; activations that skip their own zeros take "
        f"{_percent(bits['activation'])}. "
    )
    if saved > 0.25:
        text += f"Temporal differences save {_percent(saved)} of the work: use them."
    elif saved > 0.05:
        text += f"Temporal differences save only {_percent(saved)} of the work: choose by layer."
    else:
        text += (
            "Temporal differences save next to nothing here: take more steps, or a sampler "
            "without fresh noise (--eta 0)."
        )
    return text


def _modes(runs: Sequence[Facts]) -> list[str]:
    """Name layers that another mode than temporal suits better."""
    result = []
    for run in runs:
        others = [e for e in run["layers"] if e["counted"] and e["best"] != "temporal"]
        if not others:
            continue
        others.sort(key=lambda entry: -entry["share"])
        names = ", ".join(f"{entry['name']} ({entry['best']})" for entry in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        bits = run["means"]["bit_operations"]
        result.append(
            f"{run['sampler']}: {_layers(others)} with "
            f"{_percent(sum(entry['share'] for entry in others))} of the multiplications would "
            f"cost less in another mode: {names}{more}. The best mode for each layer brings the "
            f"whole from {_percent(bits['temporal'])} to {_percent(bits['best'])}."
        )
    return result


def _thresholds(facts: Facts) -> list[str]:
    result = []
    for entry in facts.get("threshold", ()):
        against = {"float": "the float model's images", "lossless": "the images without threshold"}
        bound = f"{entry['min_psnr']:g} dB against {against[entry['against']]}"
        if entry["suggested"] is None:
            result.append(
                f"{entry['sampler']}: no threshold, not even 0, stays within {bound}. The "
                "quantization itself costs more: calibrate with more trajectories, or with the "
                "other scale rule."
            )
            continue
        chosen = next(p for p in entry["curve"] if p["tau"] == entry["suggested"])
        if chosen["tau"] == 0:
            result.append(f"{entry['sampler']}: leave the threshold at 0 to stay within {bound}.")
            continue
        first = entry["curve"][0]["bit_operations"]
        result.append(
            f"{entry['sampler']}: --tau {chosen['tau']} is the largest that stays within {bound}; "
            f"it brings the bit operations from {_percent(first)} to "
            f"{_percent(chosen['bit_operations'])}."
        )
    return result


def _late_steps(run: Facts) -> list[str]:
    bits = [step["bit_operations"]["temporal"] for step in run["by_step"][1:]]
    count = len(bits) // 10
    if not count:
        return []
    last, mean = sum(bits[-count:]) / count, sum(bits) / len(bits)
    if last < 1.3 * mean:
        return []
    return [
        f"{run['sampler']}: the last tenth of the steps takes {last / mean:.1f} times the mean. "
        "Judge by whole runs, never by a few steps in the middle."
    ]


def _state(run: Facts) -> list[str]:
    state, traffic = run["state"], run["traffic"]
    return [
        f"An image keeps {state['bytes'] / 1024:,.0f} KiB from step to step (previous inputs and "
        f"accumulators), beside {state['weights'] / 1024:,.0f} KiB of weights. In on-chip memory "
        "this costs no traffic; from DRAM, naive differences move "
        f"{traffic['elements']['naive_ratio']:.2f} times the elements and "
        f"{traffic['bytes']['naive_ratio']:.2f} times the bytes of plain execution."
    ]


def _rest(facts: Facts, run: Facts) -> list[str]:
    result = []
    fixed = [entry for entry in run["layers"] if not entry["counted"]]
    if fixed:
        names = ", ".join(entry["name"] for entry in fixed[:3])
        result.append(
            f"Independent of the sample: {_layers(fixed)} "
            f"({names}{', …' if len(fixed) > 3 else ''}). "
            "Compute them once for each timestep. The means leave them out."
        )
    if facts["in_float"]:
        names = list(facts["in_float"])
        result.append(
            f"Not quantized, so nothing is gained: {_layers(names)}: {', '.join(names[:5])}"
            f"{', …' if len(names) > 5 else ''}."
        )
    if facts["on_host"]:
        names = [f"{name} ({why})" for name, why in facts["on_host"].items()]
        result.append(
            f"On the host, so their cycles are not counted: {_layers(names)}: "
            f"{'; '.join(names[:3])}{'; …' if len(names) > 3 else ''}."
        )
    return result
