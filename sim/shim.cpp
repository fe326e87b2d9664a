// The C interface around one verilated device: two byte queues and a clock.
//
// Compiled together with what Verilator makes of the device, whose ports are `clk`, `rst` and the
// byte streams `i` and `o`. Every loop over clock cycles is here, so that one call from Python is
// thousands of cycles. Each `Sim` owns its VerilatedContext: several may live in one process and
// run in different threads, one thread at a time each.

#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "Vditto.h"
#include "verilated.h"

#if defined(_WIN32)
#define API extern "C" __declspec(dllexport)
#else
#define API extern "C" __attribute__((visibility("default")))
#endif

namespace {

// Bytes that wait; the front moves instead of the bytes.
class Queue {
public:
    size_t size() const { return bytes.size() - front; }

    uint8_t head() const { return bytes[front]; }

    void push(uint8_t byte) { bytes.push_back(byte); }

    void push(const uint8_t* from, size_t count) { bytes.insert(bytes.end(), from, from + count); }

    void drop(size_t count) {
        front += count;
        if (front == bytes.size()) {
            clear();
        } else if (front >= 65536 && front >= bytes.size() / 2) {
            bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(front));
            front = 0;
        }
    }

    size_t pull(uint8_t* to, size_t count) {
        if (count > size()) count = size();
        if (count) std::memcpy(to, bytes.data() + front, count);
        drop(count);
        return count;
    }

    void clear() {
        bytes.clear();
        front = 0;
    }

private:
    std::vector<uint8_t> bytes;
    size_t front = 0;
};

struct Sim {
    VerilatedContext context;
    std::unique_ptr<Vditto> top;
    Queue input;
    Queue output;
    uint64_t cycles = 0;
    uint64_t interval = 1;  // cycles that a byte takes on the link
    uint64_t next_input = 0;
    uint64_t next_output = 0;
    bool alive = true;
    std::string error;
};

// Call `body`; an exception becomes `failed`, its text stays in the simulation.
template <typename Result, typename Body>
Result guarded(Sim* sim, Result failed, Body body) {
    if (!sim->alive) return failed;
    try {
        return body();
    } catch (const std::exception& e) {
        sim->error = e.what();
    } catch (...) {
        sim->error = "unknown C++ exception";
    }
    sim->alive = false;
    return failed;
}

}  // namespace

// What Verilator's runtime calls instead of ending the process (VL_USER_FATAL, VL_USER_FINISH,
// VL_USER_STOP).

void vl_fatal(const char* file, int line, const char*, const char* message) {
    throw std::runtime_error(std::string(file ? file : "") + ":" + std::to_string(line) + ": " +
                             (message ? message : ""));
}

void vl_finish(const char* file, int line, const char* where) {
    vl_fatal(file, line, where, "the device called $finish");
}

void vl_stop(const char* file, int line, const char* where) {
    vl_fatal(file, line, where, "an assertion of the device failed");
}

// A new device after power-up, or null.
API Sim* ditto_new() {
    try {
        auto sim = std::make_unique<Sim>();
        sim->top = std::make_unique<Vditto>(&sim->context, "ditto");
        sim->top->clk = 0;
        sim->top->rst = 0;
        sim->top->i___05Fvalid = 0;
        sim->top->i___05Fpayload = 0;
        sim->top->o___05Fready = 0;
        sim->top->eval();
        return sim.release();
    } catch (...) {
        return nullptr;
    }
}

API void ditto_delete(Sim* sim) {
    guarded(sim, 0, [&] { return sim->top->final(), 0; });
    delete sim;
}

// Why calls fail; empty while the simulation is sound.
API const char* ditto_error(const Sim* sim) { return sim->error.c_str(); }

// Clock cycles since power-up.
API uint64_t ditto_cycles(const Sim* sim) { return sim->cycles; }

// Bytes that the device has yet to take.
API size_t ditto_pending(const Sim* sim) { return sim->input.size(); }

// Bytes that wait to be pulled.
API size_t ditto_available(const Sim* sim) { return sim->output.size(); }

// Let at least `interval` cycles pass between bytes of one direction, as a serial line does.
API void ditto_pace(Sim* sim, uint64_t interval) { sim->interval = interval ? interval : 1; }

// Forget the bytes in both queues and hold `rst` for `cycles` cycles; 0 or -1.
API int ditto_reset(Sim* sim, uint64_t cycles) {
    return guarded(sim, -1, [&] {
        Vditto& top = *sim->top;
        sim->input.clear();
        sim->output.clear();
        top.i___05Fvalid = 0;
        top.o___05Fready = 0;
        top.rst = 1;
        for (uint64_t n = 0; n < cycles; n++) {
            top.clk = 0;
            top.eval();
            top.clk = 1;
            top.eval();
            sim->cycles++;
        }
        top.clk = 0;
        top.rst = 0;
        top.eval();
        return 0;
    });
}

// Queue bytes for the device; 0 or -1. No time passes.
API int ditto_push(Sim* sim, const uint8_t* bytes, size_t count) {
    return guarded(sim, -1, [&] {
        sim->input.push(bytes, count);
        return 0;
    });
}

// Take up to `count` bytes that the device has sent; how many. No time passes.
API size_t ditto_pull(Sim* sim, uint8_t* bytes, size_t count) {
    return sim->output.pull(bytes, count);
}

// Run the clock until `want` bytes wait to be pulled, or some do and none has followed for `gap`
// cycles, or `drain` is set and the device has taken all input, or for `limit` cycles.
// Returns the cycles that passed, or -1.
API int64_t ditto_run(Sim* sim, uint64_t limit, size_t want, uint64_t gap, int drain) {
    return guarded(sim, int64_t{-1}, [&] {
        Vditto& top = *sim->top;
        Queue& input = sim->input;
        Queue& output = sim->output;
        const uint64_t interval = sim->interval;
        const uint64_t start = sim->cycles;
        uint64_t now = start;
        uint64_t silent = 0;
        while (now - start < limit) {
            const size_t waiting = output.size();
            if (waiting >= want || (waiting && silent >= gap)) break;
            if (drain && !input.size()) break;
            const bool offer = input.size() && now >= sim->next_input;
            const bool accept = now >= sim->next_output;
            top.clk = 0;
            top.i___05Fvalid = offer;
            top.i___05Fpayload = offer ? input.head() : 0;
            top.o___05Fready = accept;
            top.eval();
            const bool taken = offer && top.i___05Fready;
            const bool given = accept && top.o___05Fvalid;
            const uint8_t byte = top.o___05Fpayload;
            top.clk = 1;
            top.eval();
            sim->cycles = ++now;
            silent++;
            if (taken) {
                input.drop(1);
                sim->next_input = now + interval - 1;
            }
            if (given) {
                output.push(byte);
                sim->next_output = now + interval - 1;
                silent = 0;
            }
        }
        return static_cast<int64_t>(now - start);
    });
}
