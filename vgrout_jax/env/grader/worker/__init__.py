"""What runs inside the sandbox: a server that forks one child per stage of an answer.

Nothing here imports the rest of the project, and nothing here ever holds an expected value.

server     the warm process: forks a child for each stage
child      one stage of one answer
confine    identity, limits, Landlock and seccomp
syscalls   the seccomp filter
watching   the clocks of a child
folder     the private folder of an answer
plain      results as bytes
probes     the answer's own test function, tried
stand_ins  wrong solutions that it is tried with
ending     the end of a script
"""
