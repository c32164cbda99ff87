"""Bars and lines: several tasks at a time, from several threads."""

import threading

import pytest

from imatrix_lab.cli.terminal import Terminal


@pytest.mark.parametrize("plain", [True, False])
def test_threads_share_one_display(plain, capfd):
    terminal = Terminal(plain)
    both_are_open = threading.Barrier(2, timeout=20)
    failed: list[BaseException] = []

    def work(name):
        try:
            with terminal.task(name, 10, "tokens") as task:
                both_are_open.wait()
                task.update(5, "half")
                with terminal.task(f"part of {name}", 1, "") as part:
                    part.update(1)
                terminal.say(f"{name} says")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    told = capfd.readouterr().err
    for words in ("one: done in", "part of two: done in", "two says"):
        assert words in told


def test_a_task_that_is_interrupted_is_not_called_done(capfd):
    terminal = Terminal(plain=False)
    for _ in range(2):  # the display can be opened again
        with pytest.raises(KeyboardInterrupt), terminal.task("x", 1, ""):
            raise KeyboardInterrupt
    assert "done" not in capfd.readouterr().err
