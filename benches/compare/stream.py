"""The random tokens of `metal-candle bench`: crates/mc-backend/src/random.rs in Python, so that both sides train on the
same rows. Philox4x32-10 in counter mode, and Lemire's integers without bias."""
SAMPLE = 4  # the purpose that the tokens are drawn for
MASK = 0xFFFFFFFF


def philox(c, k):
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = ((p1 >> 32) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK)
        k = ((k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK)
    return c


def bits(seed, step):
    key, block = (seed & MASK, seed >> 32), 0
    while True:
        yield from philox((block & MASK, step & MASK, (step >> 32 & 0xFFFFF) | SAMPLE << 20, block >> 32), key)
        block += 1


def tokens(row, count, vocabulary, seed=0):
    """`count` tokens of a row."""
    threshold = (-vocabulary & MASK) % vocabulary
    wide = (number * vocabulary for number in bits(seed, row))
    kept = (number >> 32 for number in wide if number & MASK >= threshold)
    return [next(kept) for _ in range(count)]


assert philox((0,) * 4, (0,) * 2) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
