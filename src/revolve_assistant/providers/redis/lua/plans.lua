-- ARGV: 1: only those that are due. Returns now, the next due after that ('' for none), then key, spec, due …
local out = {string.format('%.17g', now / 1000), ''}
local found = call('ZRANGEBYSCORE', PLANS, '-inf', ARGV[1] == '1' and now / 1000 or '+inf', 'WITHSCORES', 'LIMIT', 0, 10000)
for i = 1, #found, 2 do
  local n = #out
  out[n + 1], out[n + 2], out[n + 3] = found[i], call('HGET', SPECS, found[i]) or '', found[i + 1]
end
local next = call('ZRANGEBYSCORE', PLANS, '(' .. string.format('%.17g', now / 1000), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
if next then out[2] = next end
return out
