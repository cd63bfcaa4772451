"""The standard environment for learned LLM-serving schedulers.

Importing this package registers its environments with Gymnasium:

    gym.make("llm_env:llm_env/Serving-v0", scenario="chat")
    gym.make_vec("llm_env:llm_env/Serving-v0", num_envs=256, scenario="chat-bursty")
    gym.make("llm_env:llm_env/Routing-v0", scenario="unequal-workers")
"""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

__version__ = "0.1.0"

# id -> action form; the environments differ in nothing else, but that who ranks requests also sees them
ENVIRONMENTS = {
    "llm_env/Serving-v0": "multidiscrete",
    "llm_env/ServingDiscrete-v0": "discrete",
    "llm_env/ServingBox-v0": "box",
    "llm_env/ServingAdaptive-v0": "adaptive",
    "llm_env/ServingRanked-v0": "ranked",
    "llm_env/ServingRoles-v0": "roles",
}

ROUTING_ENVIRONMENT = "llm_env/Routing-v0"

for _id, _action in ENVIRONMENTS.items():
    if _id not in registry:
        register(
            id=_id,
            entry_point="llm_env.env:ServingEnv",
            vector_entry_point="llm_env.vector:ServingVectorEnv",
            kwargs={"action": _action},
        )

if ROUTING_ENVIRONMENT not in registry:
    register(
        id=ROUTING_ENVIRONMENT,
        entry_point="llm_env.routing_env:RoutingEnv",
        vector_entry_point="llm_env.routing_vector:RoutingVectorEnv",
    )
