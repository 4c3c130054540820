-- ARGV: taker, number of the last leases it has seen, run of the server that it hears ('': of none yet), lease, worker,
-- about, ms that it may need to come back to a server that was started anew.
local taker = ARGV[1]
local key = taker_of(taker)
call('PEXPIRE', key, HOUR)
local number = tonumber(call('HGET', key, 'number') or 0)
call('HSET', key, 'number', math.max(number, tonumber(ARGV[2])), 'lease', ARGV[4])
if ARGV[3] ~= '' then call('HSET', key, 'run', ARGV[3], 'away', ARGV[7]) else call('HSETNX', key, 'run', '') end
if ARGV[5] ~= '' then call('HSET', key, 'worker', ARGV[5], 'about', ARGV[6]) end
call('HDEL', key, 'gone')
call('PEXPIRE', key, HOUR)
call('ZADD', TAKERS, now, taker)
call('PEXPIRE', TAKERS, HOUR)
if ARGV[3] ~= '' and call('HGET', STATE, 'run') ~= ARGV[3] then -- the first one that comes to this server
  spare(math.ceil(now + tonumber(ARGV[7])))
  call('HSET', STATE, 'run', ARGV[3])
  call('PEXPIRE', STATE, HOUR)
end
return 1
