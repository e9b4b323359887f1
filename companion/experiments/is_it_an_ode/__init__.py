"""Experiments of the chapter `is_it_an_ode`."""
