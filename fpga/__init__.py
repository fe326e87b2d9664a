"""Boards, tops and builds."""
