"""From offline to online: one loop, in which base algorithms, replays and generators differ by what a batch consists of."""
