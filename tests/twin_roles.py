"""Workers of the slow twin (`reference_simulator`) that change role."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twin_model import Worker

from llm_env.dtypes import FINISHED, FUTURE, REJECTED, ROLE_DECODE, ROLE_PREFILL, RUNNING

if TYPE_CHECKING:
    from reference_simulator import Simulator


class Roles:
    def __init__(self, sim: Simulator) -> None:
        self.sim, self.settings = sim, sim.settings

    def to_be(self, worker: Worker) -> int:
        return worker.next_role or worker.role

    def may_leave(self, worker: Worker) -> bool:
        role = self.to_be(worker)
        least = self.settings.least_decode if role == ROLE_DECODE else self.settings.least_prefill
        return [self.to_be(w) for w in self.sim.workers].count(role) > least

    def has_say(self, worker: Worker) -> bool:
        """Whether a worker with nothing to do is asked. Reading: not where it could not go anyway."""
        if not self.settings.change_roles:
            return False
        unfinished = any(r.status not in (FUTURE, FINISHED, REJECTED) for r in self.sim.requests)
        return bool(worker.next_role) or (unfinished and self.may_leave(worker))

    def ask(self, worker: Worker, role: int) -> bool:
        """True if the worker begins to change."""
        if role in (ROLE_PREFILL, ROLE_DECODE) and role != self.to_be(worker) and self.may_leave(worker):
            worker.next_role = 0 if role == worker.role else role
        if not worker.next_role:
            return False
        if worker.role == ROLE_DECODE and not self.sim.network.line:
            for request in worker.present:
                if not self.sim.network.has_room(request):
                    break
                self.sim.network.line_up(worker, request)
                self.sim.network.start_moves()
        if worker.present or worker.swapped or worker.incoming:
            return False
        worker.switch_end_s = self.sim.now_s + self.settings.switch_s
        return True

    def end_changes(self) -> bool:
        """Those that end now; True if there was one."""
        ended = [w for w in self.sim.workers if w.switch_end_s is not None and w.switch_end_s <= self.sim.now_s]
        for worker in ended:
            worker.switch_end_s = None
            worker.role, worker.next_role, worker.last_batch = worker.next_role, 0, None
            worker.queue = None if worker.role == ROLE_DECODE else self.sim.queues[0]
            line = self.sim.network.line
            for transfer in [t for t in line if t.source is worker and worker.role == ROLE_DECODE]:
                line.remove(transfer)
                transfer.request.status = RUNNING
        return bool(ended)
