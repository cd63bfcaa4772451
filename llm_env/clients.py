"""What each client has received, for orders that are fair between them. Knows the records and the queue only.

Source: Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), Algorithm 2, Virtual Token Counter: a
prompt token counts 1 when its request is admitted, an output token 2 when it is made; a client that comes back is
lifted to the least counter of those that wait, so that it cannot save up credit.
"""

from __future__ import annotations

from llm_env.dtypes import INF, NOBODY
from llm_env.jit import njit
from llm_env.least import first_least
from llm_env.records import KEY_SERVICE, State

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0  # w_p and w_q of the paper's section 5.1


@njit
def client_arrives(state: State, i) -> None:
    """Request i is about to join a queue."""
    system = state.system[0]
    if system.num_clients < 2:
        return
    client = state.clients[state.requests[i].tenant]
    if client.num_waiting == 0:
        least = _least_service(state)
        if least == INF and system.last_client != NOBODY:
            least = state.clients[system.last_client].service
        if least < INF:
            client.service = max(client.service, least)
    client.num_waiting += 1


@njit
def _least_service(state: State) -> float:
    """That of the client with the least among those that wait; inf if nobody does."""
    least = INF
    for q in range(state.queues.shape[0]):
        queue = state.queues[q]
        if queue.num_waiting > queue.num_resumed:
            i = first_least(state, q, KEY_SERVICE)
            least = min(least, state.clients[state.requests[i].tenant].service)
        i = queue.front
        for _ in range(queue.num_resumed):
            least = min(least, state.clients[state.requests[i].tenant].service)
            i = state.requests[i].next
    return least


@njit
def client_admitted(state: State, i) -> None:
    """Request i has left its queue; the first time its prompt is charged."""
    system, r = state.system[0], state.requests[i]
    if system.num_clients < 2:
        return
    client = state.clients[r.tenant]
    client.num_waiting -= 1
    system.last_client = r.tenant
    if r.evictions == 0:
        client.service += PROMPT_WEIGHT * r.prompt_tokens


@njit
def charge_token(state: State, i) -> None:
    """Request i has emitted a token."""
    if state.system[0].num_clients >= 2:
        state.clients[state.requests[i].tenant].service += OUTPUT_WEIGHT


@njit
def client_waits_again(state: State, i) -> None:
    """Request i was evicted and waits."""
    if state.system[0].num_clients >= 2:
        state.clients[state.requests[i].tenant].num_waiting += 1
