"""Redis and Valkey, 6.2 or later."""

REQUIRES = "redis"
