-- ARGV: taker, number of the last leases it has seen, 1: it holds some. Everything it holds goes back, and it is
-- forgotten.
local key = taker_of(ARGV[1])
call('PEXPIRE', key, HOUR)
if ARGV[3] == '1' or tonumber(call('HGET', key, 'number') or 0) > tonumber(ARGV[2]) then
  dismiss(ARGV[1])
else
  call('ZREM', TAKERS, ARGV[1])
  call('UNLINK', key)
end
return 1
