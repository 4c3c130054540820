-- ARGV: taker, number of the last leases it has seen, run of the server that it hears ('': of none yet), lease, worker, about.
local taker = ARGV[1]
local key = taker_of(taker)
call('PEXPIRE', key, HOUR)
local number = tonumber(call('HGET', key, 'number') or 0)
call('HSET', key, 'number', math.max(number, tonumber(ARGV[2])), 'lease', ARGV[4])
if ARGV[3] ~= '' then call('HSET', key, 'run', ARGV[3]) else call('HSETNX', key, 'run', '') end
if ARGV[5] ~= '' then call('HSET', key, 'worker', ARGV[5], 'about', ARGV[6]) end
call('HDEL', key, 'gone')
call('PEXPIRE', key, HOUR)
call('ZADD', TAKERS, now, taker)
call('PEXPIRE', TAKERS, HOUR)
return 1
