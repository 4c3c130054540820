"""Many items: results in order as they come, and a failure that concerns its item alone."""

from math import isqrt

from revolve_assistant import Client


def factors(number):
    if number < 2:
        raise ValueError(f"{number} has no prime factors")
    found, candidate = [], 2
    while candidate <= isqrt(number):
        while number % candidate == 0:
            found.append(candidate)
            number //= candidate
        candidate += 1
    return [*found, number] if number > 1 else found


with Client() as client:
    numbers = [*range(999_990, 1_000_001), 0, 2**31 - 1, 1_000_003 * 1_000_033]
    for number, found in zip(numbers, client.map(factors, numbers, errors="return"), strict=True):
        print(f"{number} = {found!r}" if isinstance(found, Exception) else f"{number} = {' × '.join(map(str, found))}")

    # 20,000 tiny items travel in chunks whose size follows from how long they take
    primes = sum(len(found) == 1 for found in client.map(factors, range(2, 20_002)))
    print(f"{primes} primes below 20,002")
