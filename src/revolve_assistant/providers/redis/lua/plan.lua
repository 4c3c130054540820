-- ARGV: key, spec, due. Without a spec the plan is removed. Returns 1: it was there.
local key = ARGV[1]
local there = call('HEXISTS', SPECS, key)
if ARGV[3] then
  call('HSET', SPECS, key, ARGV[2])
  call('ZADD', PLANS, ARGV[3], key)
else
  call('HDEL', SPECS, key)
  call('ZREM', PLANS, key)
end
call('HDEL', FIRED, key)
return there
