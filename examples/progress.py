"""What a run shows while it trains, and how it is asked to stop."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType


class Progress:
    """A bar with loss and tokens a second on a terminal; about twenty plain lines elsewhere."""

    def __init__(self, label: str, *, steps: int, start: int, tokens_a_step: int) -> None:
        self.label, self.steps, self.tokens_a_step = label, steps, tokens_a_step
        self.validation: float | None = None
        self.every = max(1, steps // 20)
        self.bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=steps, initial=start, desc=label, unit="step", dynamic_ncols=True)

    def update(self, step: int, loss: float, seconds: float) -> None:
        rate = self.tokens_a_step / seconds
        if self.bar is not None:
            held_out = {} if self.validation is None else {"validation": f"{self.validation:.3f}"}
            self.bar.set_postfix({"loss": f"{loss:.3f}", **held_out, "tokens/s": f"{rate:,.0f}"}, refresh=False)
            self.bar.update()
        elif step == 1 or step % self.every == 0 or step == self.steps:
            held_out = "" if self.validation is None else f"  validation {self.validation:.3f}"
            figures = f"loss {loss:.3f}{held_out}  {rate:,.0f} tokens/s"
            print(f"{self.label}: step {step}/{self.steps}  {figures}", flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()


class StopRequest:
    """Calling it says whether Ctrl-C or SIGTERM came. A step is never cut in two; a second Ctrl-C quits at once."""

    def __init__(self) -> None:
        self.requested = False
        self.previous: dict[int, object] = {}

    def __call__(self) -> bool:
        return self.requested

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this step (again: at once, without saving)", file=sys.stderr, flush=True)
