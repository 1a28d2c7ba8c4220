"""The parts of `perf/run`, which measures Corelog and other brokers side by side.

    scenario   what is asked           child     processes, and what they used
    broker     who is asked            wire      as much of the protocol as the runner needs
    tool       who asks                machine   what it all ran on
    turn       one question to one broker: a fresh start, the load, the answer
    lifecycle  start-up, idle cost, memory per partition and per connection
    recovery   starts after kill -9, by data and by partitions
    floor      what the machine allows
    figures, summary, bars, plot       the answers as numbers, tables and drawings
"""
