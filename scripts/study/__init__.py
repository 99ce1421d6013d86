"""The evidence for S&I-C: its components, forms and ablations on several networks.

In flow networks and image sets; out flow tables and figures, each with its intervals.
"""
