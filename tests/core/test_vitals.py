"""What the system says of processes and limits: real processes, and made-up cgroup trees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revolve_assistant.errors import UsageError
from revolve_assistant.pool import vitals

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
MIB = 1 << 20


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that prints a line when it is ready, then runs until its stdin closes."""
    code = textwrap.dedent(code) + "\nimport sys; print('ready', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@linux
def test_resident_and_peak_of_a_child() -> None:
    with child("block = b'x' * (80 << 20)") as big, child("block = b'x' * (80 << 20); del block") as freed:
        assert 80 * MIB < vitals.resident(big.pid) < 110 * MIB
        assert vitals.resident(freed.pid) < 40 * MIB
        assert vitals.peak(freed.pid) > 80 * MIB
    assert vitals.resident(big.pid) == vitals.peak(big.pid) == 0  # gone


@linux
def test_shared_memory_is_not_billed() -> None:
    code = """
        import mmap
        block = mmap.mmap(-1, 80 << 20)
        block.write(b"x" * (80 << 20))
    """
    with child(code) as process:
        assert vitals.resident(process.pid) < 40 * MIB


@linux
def test_resident_is_cheap() -> None:
    assert min(timeit.repeat(lambda: vitals.resident(os.getpid()), number=200, repeat=5)) / 200 < 200e-6


@linux
def test_is_stopped() -> None:
    code = "open('/proc/self/comm', 'w').write(') T (')"  # the name must not be taken for the state
    with child(code) as process:
        assert not vitals.is_stopped(process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert vitals.is_stopped(process.pid)
        process.send_signal(signal.SIGCONT)
        os.waitpid(process.pid, os.WCONTINUED)
        assert not vitals.is_stopped(process.pid)
    assert not vitals.is_stopped(process.pid)


@linux
def test_a_child_volunteers_for_oom() -> None:
    before = int(Path("/proc/self/oom_score_adj").read_text())
    code = """
        from revolve_assistant.pool.vitals import volunteer_for_oom
        assert volunteer_for_oom()
    """
    with child(code) as process:
        score = Path(f"/proc/{process.pid}/oom_score_adj")
        assert int(score.read_text()) == min(1000, before + 300)
        assert vitals.raise_oom_score(process.pid, to=5000)
        assert int(score.read_text()) == 1000
        assert vitals.raise_oom_score(process.pid, to=0)  # never lowers
        assert int(score.read_text()) == 1000
    assert not vitals.raise_oom_score(process.pid, to=1000)


def test_an_exit_that_nobody_knows_is_called_so() -> None:
    text, number, code = vitals.describe_exit(vitals.UNKNOWN_EXIT)
    assert "not known" in text
    assert number is code is None


@pytest.mark.parametrize(
    ("code", "described"),
    [
        ("import os; os._exit(3)", ("exited with code 3", None, 3)),
        ("", ("exited with code 0", None, 0)),
        ("import os; os.kill(os.getpid(), 11)", ("killed by SIGSEGV (segmentation fault)", 11, None)),
        ("import os; os.kill(os.getpid(), 9)", ("killed by SIGKILL", 9, None)),
        ("import os; os.abort()", ("killed by SIGABRT (aborted)", 6, None)),
        ("import os; os.kill(os.getpid(), 40)", ("killed by signal 40", 40, None)),
    ],
)
@linux
def test_describe_exit(code: str, described: tuple[str, int | None, int | None]) -> None:
    assert vitals.describe_exit(subprocess.run([sys.executable, "-c", code], check=False).returncode) == described


# ---------------------------------------------------------------- cgroups

Tree = Callable[..., None]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Builds a `/proc` and the cgroup file systems that it names."""

    def build(*, cgroup: str, mounts: str, files: dict[str, str], total: int = 16 << 30) -> None:
        (tmp_path / "self").mkdir(parents=True)
        (tmp_path / "self" / "cgroup").write_text(textwrap.dedent(cgroup))
        (tmp_path / "self" / "mountinfo").write_text(textwrap.dedent(mounts).replace("ROOT", str(tmp_path)))
        (tmp_path / "meminfo").write_text(f"MemTotal:    {total // 1024} kB\n")
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr(vitals, "_PROC", str(tmp_path))
    return build


V2 = "31 23 0:28 / ROOT/cg rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"


def test_v2_the_tightest_ancestor_counts(tree: Tree) -> None:
    tree(
        cgroup="0::/pod/box\n",
        mounts=V2,
        files={
            "cg/pod/memory.max": f"{1 << 30}\n",
            "cg/pod/box/memory.max": "max\n",
            "cg/pod/box/memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 1\n",
            "cg/pod/memory.events": "oom_kill 9\n",
            "cg/pod/cpu.max": "150000 100000\n",
            "cg/pod/box/cpu.max": "max 100000\n",
        },
    )
    assert vitals.cgroup_limit() == 1 << 30
    assert vitals.default_memory_limit(4) == (1 << 30) // 5
    assert vitals.oom_kills() == 2
    assert vitals.usable_cpus() == min(2, len(os.sched_getaffinity(0)))


def test_no_limit_and_a_limit_above_the_machine(tree: Tree) -> None:
    tree(cgroup="0::/\n", mounts=V2, files={"cg/memory.max": f"{64 << 30}\n", "vmstat": "nr_x 1\noom_kill 7\n"})
    assert vitals.total_memory() == 16 << 30
    assert vitals.cgroup_limit() is None
    assert vitals.default_memory_limit(4) is None
    assert vitals.oom_kills() == 7  # the root has no counter: the machine's
    assert vitals.usable_cpus() == len(os.sched_getaffinity(0))


def test_v1_in_a_container_without_a_namespace(tree: Tree) -> None:
    tree(
        cgroup="""\
            5:memory:/docker/abc
            4:cpu,cpuacct:/docker/abc/inner
            1:name=systemd:/docker/abc
            """,
        mounts="""\
            35 31 0:32 /docker/abc ROOT/a\\040dir/memory ro - cgroup cgroup rw,memory
            36 31 0:33 /docker/abc ROOT/cpu ro - cgroup cgroup rw,cpu,cpuacct
            """,
        files={
            "a dir/memory/memory.limit_in_bytes": f"{512 * MIB}\n",
            "a dir/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
            "cpu/inner/cpu.cfs_quota_us": "-1\n",
            "cpu/inner/cpu.cfs_period_us": "100000\n",
            "cpu/cpu.cfs_quota_us": "50000\n",
            "cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert vitals.cgroup_limit() == 512 * MIB
    assert vitals.oom_kills() == 4
    assert vitals.usable_cpus() == 1


def test_hybrid_and_v1_without_a_limit(tree: Tree) -> None:
    tree(
        cgroup="4:memory:/job\n0::/\n",
        mounts=V2 + "35 31 0:32 / ROOT/memory rw - cgroup cgroup rw,memory\n",
        files={"memory/job/memory.limit_in_bytes": "9223372036854771712\n", "cg/cgroup.procs": "1\n"},
    )
    assert vitals.cgroup_limit() is None


@pytest.mark.parametrize("cgroup", ["", "nonsense\n", "0::/../../other\n", "0::/gone\n"])
@pytest.mark.parametrize("mounts", ["", "nonsense - \n1 2 3 - cgroup2\n", V2])
def test_odd_trees_are_no_limit(tree: Tree, cgroup: str, mounts: str) -> None:
    tree(cgroup=cgroup, mounts=mounts, files={})
    assert vitals.cgroup_limit() is None
    assert vitals.oom_kills() == 0
    assert vitals.usable_cpus() >= 1


def test_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "_PROC", str(tmp_path / "nowhere"))
    assert vitals.resident(1) == vitals.peak(1) == vitals.oom_kills() == 0
    assert not vitals.is_stopped(1)
    assert not vitals.volunteer_for_oom()
    assert vitals.cgroup_limit() is None
    assert vitals.total_memory() > 0
    assert vitals.usable_cpus() >= 1


def test_on_this_machine() -> None:
    assert vitals.total_memory() > 64 * MIB
    limit = vitals.cgroup_limit()
    assert limit is None or limit < vitals.total_memory()
    assert 1 <= vitals.usable_cpus() <= (os.cpu_count() or 1)
    assert vitals.oom_kills() >= 0


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1, 1),
        (1 << 40, 1 << 40),
        ("2GiB", 2 << 30),
        ("512M", 512 << 20),
        ("1.5 g", 3 << 29),
        ("64Ki", 64 << 10),
        ("10 MB", 10**7),
        ("1000", 1000),
        ("7b", 7),
        (" 1TiB ", 1 << 40),
    ],
)
def test_parse_memory(value: str | int, size: int) -> None:
    assert vitals.parse_memory(value) == size


@pytest.mark.parametrize(
    "value", ["", "G", "-1G", "1X", "1 G B", "GiB2", "1.2.3G", "٣G", "²", "inf", "0", 0, -5, True, 1.5, None, "9" * 30]
)
def test_wrong_sizes(value: str | int) -> None:
    with pytest.raises(UsageError, match="must be a number of bytes > 0, or a text such as '512M' or '2GiB'"):
        vitals.parse_memory(value)


@given(st.text())
def test_parse_memory_raises_nothing_else(text: str) -> None:
    with suppress(UsageError):
        assert vitals.parse_memory(text) > 0


def test_importing_is_cheap() -> None:
    code = (
        "import sys; before = set(sys.modules); import revolve_assistant.errors; base = set(sys.modules); "
        "import revolve_assistant.pool.vitals; print(*sorted(set(sys.modules) - base))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["revolve_assistant.pool", "revolve_assistant.pool.vitals"]
