"""From hosts and ports to bound sockets: names, binding, systemd, SO_REUSEPORT.

Read `binding` first, then `resolve`, `reuseport`, `activation` (systemd) and `adoption` (sockets that others made).
May import `reactor` and `echo7.policy`; never `echo7.process`.
"""
