"""What a run is made of, what it leaves, and how it goes on.

build         makes model, adapter, data, arm and compiled programs, once
overlap       faults of a run's data taken together
step_record   from a step's rollouts and metrics to its record
writer        the workdir's files, and the list of metrics
terminal      the table on the terminal
tensorboard   event files
gradients     stored probe gradients, for replaying the gate
reader        reads what a run has left
continuation  whose workdir it is, what an earlier run in it means, cutting it back
progress      what a step leaves to the next, and its way to disk and back
snapshots     resume states: written in the background, checked when read
preemption    SIGTERM and Ctrl-C
queue         runs one after the other, from where an earlier queue was stopped
"""
