"""Experiments of the chapter `ode_nets`."""
