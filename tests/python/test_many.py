"""What must not grow: over a thousand calls, and fifty engines."""

import asyncio
import gc
import os
import pathlib

from chats import open_descriptors, tasks_come_down_to, tiny_chat
from processes import child_pids


def resident_kib() -> int:
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


def shared_memory() -> list[str]:
    return os.listdir("/dev/shm")


def test_a_thousand_calls():
    chat = tiny_chat(max_tokens=2)

    async def several(count):
        await asyncio.gather(*(chat.ainvoke(f"hello {n % 7}") for n in range(count)))

    def calls(rounds):
        for number in range(rounds):
            chat.invoke(f"hello {number % 7}")
            list(chat.stream("hello"))
            asyncio.run(several(8))

    calls(20)
    gc.collect()
    descriptors, tasks, memory = open_descriptors(), len(os.listdir("/proc/self/task")), resident_kib()
    calls(100)  # of ten each
    gc.collect()
    assert open_descriptors() <= descriptors
    assert tasks_come_down_to(tasks)
    assert resident_kib() < memory + 32_000


def test_fifty_engines():
    def one():
        chat = tiny_chat(fork_min_prefix_tokens=31)
        assert chat.invoke("hello").content
        chat.close()

    for _ in range(5):
        one()
    gc.collect()
    descriptors, tasks, memory = open_descriptors(), len(os.listdir("/proc/self/task")), resident_kib()
    processes, shm = len(child_pids()), shared_memory()
    for _ in range(50):
        one()
    gc.collect()
    assert open_descriptors() == descriptors
    assert tasks_come_down_to(tasks)
    assert len(child_pids()) == processes
    assert shared_memory() == shm
    assert resident_kib() < memory + 32_000
