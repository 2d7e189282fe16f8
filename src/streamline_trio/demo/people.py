"""Who answers the mails: one person, who knows nothing but the tokens in them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec
import trio

from streamline_trio import Engine, TokenInvalid
from streamline_trio.demo.orders import TOO_MUCH, share
from streamline_trio.demo.shop import Mail, Tail
from streamline_trio.demo.workflow import Answer

_LOOKS_EVERY = 0.1
_decode = msgspec.json.Decoder(Mail).decode


class Approver:
    """Reads the outbox and answers each mail after some thought."""

    def __init__(self, engine: Engine, mails: Path) -> None:
        self.answered: set[str] = set()
        self.refused: list[str] = []
        """Orders whose token was no good though nobody had answered for them."""
        self._engine = engine
        self._mails = Tail(mails)
        self._desk: deque[tuple[float, Mail]] = deque()

    async def work(self) -> None:
        """Answer mails until cancelled."""
        while True:
            now = trio.current_time()
            for line in self._mails.lines():
                mail = _decode(line)
                self._desk.append((now + 0.2 + 0.8 * share(mail.order, "thought"), mail))
            for mail in self._ripe(now):
                await self._answer(mail)
            await trio.sleep(_LOOKS_EVERY)

    def _ripe(self, now: float) -> Iterator[Mail]:
        for _ in range(len(self._desk)):
            at, mail = self._desk.popleft()
            if at <= now:
                yield mail
            else:
                self._desk.append((at, mail))

    async def _answer(self, mail: Mail) -> None:
        """A crash may have sent a second mail, with a further token: good until the order is answered."""
        try:
            await self._engine.resume(mail.token, Answer(mail.cents < TOO_MUCH, by="Marta"))
        except TokenInvalid:
            if mail.run not in self.answered:
                self.refused.append(mail.order)
        else:
            self.answered.add(mail.run)
