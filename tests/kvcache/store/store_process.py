"""A second process with a store, told what to do by lines on its standard input; answers each with a line of JSON.

python store_process.py DIRECTORY NAMESPACE [read_only]
put FIRST COUNT | get FIRST COUNT | refresh | stats | churn | quit
"""

import json
import sys

import numpy as np
from store_faults import content, key_of

from swa_attn.kvcache.store import SlabOptions, SlabStore, aligned_empty

NBYTES = 100_000
OPTIONS = {"capacity_bytes": 4 << 20, "segment_bytes": 1 << 20, "workers": 4}


def put(store: SlabStore, first: int, count: int) -> int:
    futures = [store.put(key_of(i), [content(key_of(i), NBYTES)]) for i in range(first, first + count)]
    return sum(future.result(30) for future in futures)


def get(store: SlabStore, first: int, count: int) -> tuple[int, int]:
    """How many came back right, and how many wrong."""
    right = wrong = 0
    for i in range(first, first + count):
        into = aligned_empty(NBYTES)
        if store.get(key_of(i), [into]).result(30):
            equal = np.array_equal(into, content(key_of(i), NBYTES))
            right, wrong = right + equal, wrong + (not equal)
    return right, wrong


def main() -> None:
    directory, namespace, *flags = sys.argv[1:]
    options = SlabOptions(**OPTIONS, read_only="read_only" in flags)
    with SlabStore(directory, options, namespace=namespace.encode()) as store:
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            command, *numbers = line.split()
            if command == "quit":
                break
            if command == "churn":
                print(json.dumps("churning"), flush=True)
                i = 1_000_000
                while True:
                    put(store, i, 8)
                    i += 8
            if command == "stats":
                stats = store.stats()
                answer = {"capacity": stats.capacity_bytes, "misses": stats.misses, "refused": stats.refused}
            elif command == "refresh":
                answer = store.refresh()
            else:
                answer = {"put": put, "get": get}[command](store, *map(int, numbers))
            print(json.dumps(answer), flush=True)
    print(json.dumps("closed"), flush=True)


if __name__ == "__main__":
    main()
