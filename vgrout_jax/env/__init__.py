"""What is asked, and what is paid.

problems  the schema of problems, their sources and their split
modes     the loophole modes: disclosures, names, what counts as using them
teacher   stored completions that join a group
world     problems, modes, prompts and teacher pool of a run
grading   grading for a run: every verdict is real, or the run stops
recall    verdicts of an interrupted step, not graded again
toy       the toy world
grader    from completions to verdicts
"""
