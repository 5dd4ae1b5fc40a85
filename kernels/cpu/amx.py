"""Whether this process may use AMX, the matrix units of Intel's server CPUs since Sapphire Rapids.

Linux lets a process use their 8 KB of registers only when it asks (Documentation/arch/x86/xstate.rst), by Linux 5.16 and
later. Threads and forked children inherit the permission.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess

_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18
AMX_FEATURES = ("amx-tile", "amx-int8", "amx-bf16")


@functools.cache
def reason_against_amx(compiler: str) -> str | None:
    """Why a CPU that has AMX can't be used so, or None. Asks for the permission, and the compiler for its flags."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA):
        return f"Linux refuses the permission (arch_prctl: {os.strerror(ctypes.get_errno())})"
    flags = ["-m" + feature for feature in AMX_FEATURES]
    done = subprocess.run([compiler, *flags, "-x", "c++", "-fsyntax-only", os.devnull], capture_output=True)
    return f"{compiler} is too old for it" if done.returncode else None
