"""The worker's view of a sample's process, at the moments when it ends."""

import os
import socket

from rft.graders.sandbox_frames import packed
from rft.graders.sandbox_worker import CONFINED, Child


def test_a_word_said_just_before_the_end_is_heard() -> None:
    """The process answers and ends right after it was seen alive: its answer is still unread then."""
    mine, its = socket.socketpair()
    output, printed = os.pipe()

    class Ending(Child):
        num_asked = 0

        def _has_ended(self) -> bool:
            self.num_asked += 1
            if self.num_asked == 1:
                its.sendall(packed({"kind": "reward", "reward": 0.5}))
                its.close()
                return False
            self._status = 0
            return True

    child = Ending(0, mine.detach(), output, [], 64)
    child._received += CONFINED
    try:
        reply = child._said(None, 1.0) or child._said(None, 1.0)
    finally:
        child.close()
        os.close(printed)
    assert reply == {"kind": "reward", "reward": 0.5}
