"""What may happen to a job, as a callback: +callbacks.fault={_target_: faults.Fault, kind: kill}"""

import os
import signal
import sys
import time

import lightning as L


class Fault(L.Callback):
    """Ends the job at the first block that ends at step `at` or later.

    Args:
        kind: none | raise | exit (status 7) | vanish (status 7, no Python exit) | kill (SIGKILL).
        at: step.
        seconds: slept after every block, so that a test can be faster than the job.
    """

    def __init__(self, kind: str = "none", at: int = 1000, seconds: float = 0.0):
        self.kind = kind
        self.at = at
        self.seconds = seconds

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        time.sleep(self.seconds)
        if self.kind == "none" or trainer.global_step < self.at:
            return
        if self.kind == "raise":
            raise RuntimeError("something went wrong")
        if self.kind == "exit":
            sys.exit(7)
        if self.kind == "vanish":
            os._exit(7)
        os.kill(os.getpid(), signal.SIGKILL)
