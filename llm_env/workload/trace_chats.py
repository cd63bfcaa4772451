"""Sessions of traces that say of each chat which one it continues (Bailian)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llm_env.errors import UserError, join_problems


class Sessions(NamedTuple):
    """Sessions of chats."""

    number: np.ndarray  # (n,) int64, in order of their first chats in the file
    num_torn: int  # chats that continue one which is not in the file


def number_sessions(path: str, chat: np.ndarray, parent: np.ndarray, first_line: int) -> Sessions:
    """The session of each chat: that of the chat at the beginning of its chain.

    A chat whose parent is not in the file begins a session: the file is a part of something longer.

    Args:
        path: of the file, for messages.
        chat: (n,) int64, the chats in order of the file.
        parent: (n,) int64, the chat that each continues, -1 for none.
        first_line: line of the first chat; each is one line.

    Raises:
        UserError: a chat is there twice, or its chain of parents never ends.
    """
    order = np.argsort(chat, kind="stable")
    ordered = chat[order]
    again = np.sort(order[1:][ordered[1:] == ordered[:-1]]).tolist()
    if again:
        raise UserError(join_problems([f"{path}:{first_line + k}:1: chat_id: {chat[k]} is there twice" for k in again]))
    place = np.minimum(np.searchsorted(ordered, parent), chat.size - 1)
    has_parent = (parent >= 0) & (ordered[place] == parent)
    root = np.where(has_parent, order[place], np.arange(chat.size))
    for _ in range(chat.size.bit_length()):  # each step doubles how far up a chat looks
        root = root[root]
    circle = np.flatnonzero(has_parent[root]).tolist()
    if circle:
        endless = "parent_chat_id: the chain of parents of chat"
        raise UserError(join_problems([f"{path}:{first_line + k}:2: {endless} {chat[k]} never ends" for k in circle]))
    return Sessions(np.unique(root, return_inverse=True)[1], int(np.count_nonzero((parent >= 0) & ~has_parent)))
