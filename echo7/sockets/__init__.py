"""From hosts and ports to bound sockets: names, binding, systemd, SO_REUSEPORT.

Read `binding` first. May import `reactor` and `echo7.policy`; never `echo7.process`.
"""
