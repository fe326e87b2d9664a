"""Gateware: synthesizable components; knows no board and no simulator."""
