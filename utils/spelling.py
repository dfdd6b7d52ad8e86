"""How far two words are apart: what makes a misspelt heading or finding the one that was meant."""


def edits_apart(one: str, other: str, most: int) -> int:
    """How many letters are wrong, missing, added or swapped with the next between two words; most + 1 if more are."""
    if abs(len(one) - len(other)) > most:
        return most + 1
    before, row = [], list(range(len(other) + 1))  # distances of the prefixes of `one` that are a letter or two shorter
    for i, letter in enumerate(one, 1):
        before_that, before, row = before, row, [i]
        for j, its in enumerate(other, 1):
            distance = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != its))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == its:
                distance = min(distance, before_that[j - 2] + 1)
            row.append(distance)
        if min(row) > most:
            return most + 1
    return min(row[-1], most + 1)
