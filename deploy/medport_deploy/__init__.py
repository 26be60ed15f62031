"""``medport deploy``: pinned endpoints on Vertex AI or on a local control plane, from one specification and lock.

spec, lock                     what is wanted, and which bytes that is
plan                           what would change, for how long and at what cost
apply, todo, rollout, trial    the steps, in a journal before they are sent, judged by smoke tests and gates
verify, report                 whether what serves is what was approved
rollback, history, approved    the way back
sweep, destroy                 taking away
terraform                      what lies below the models
control                        the calls to the target
work, cli                      all of it for one deployment; the same as commands
"""
