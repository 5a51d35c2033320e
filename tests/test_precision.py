"""What is chosen is what is quicker here: a CPU without native bf16 trains in float32, one with it in bf16."""

import subprocess
import sys

import pytest
import torch

from dsno.precision import GAIN, _seconds, best_precision, wished
from processes import environment

CPU = torch.device("cpu")
NATIVE = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()


def test_the_quicker_one_is_chosen_and_said_to_be() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    full, half = _seconds()
    assert full > 0 and half > 0
    precision, why = best_precision(CPU)
    assert (precision, why) == best_precision(CPU)
    assert ("times as fast as fp32" in why) == (precision == "bf16") and "on this CPU" in why
    assert torch.equal(state, torch.get_rng_state()) and threads == torch.get_num_threads()


@pytest.mark.skipif(not NATIVE, reason="this CPU does not multiply in bf16")
def test_a_cpu_that_multiplies_in_it_takes_bf16() -> None:
    assert best_precision(CPU)[0] == "bf16"


@pytest.mark.skipif(not NATIVE, reason="it is what the test before measures")
def test_one_that_does_not_takes_float32() -> None:
    # oneDNN is told to do without what the processor has; it reads that once in a process.
    code = "import torch; from dsno.precision import best_precision; print(*best_precision(torch.device('cpu')))"
    environ = environment() | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    precision, *why = ran.stdout.split()
    assert precision == "no" and float(why[2]) > GAIN and why[3:6] == ["times", "slower", "than"]


def test_a_device_that_says_nothing_trains_in_float32() -> None:
    assert best_precision(torch.device("mps")) == ("no", "this mps device does not say that it computes in bf16")


def test_a_wish_is_for_what_the_machine_is_good_at() -> None:
    assert wished("no") == "no" and wished("bf16") == wished("auto") == "auto"
    assert wished("fp16") == ("fp16" if torch.cuda.is_available() else "auto")
