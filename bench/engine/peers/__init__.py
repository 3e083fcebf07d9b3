"""The programs that are measured, each in a process (and, if need be, an environment) of its own.

serve.py runs in any of them and imports one `with_*` module by its bare name. None of these may
import `bench`, which those environments do not have.
"""
