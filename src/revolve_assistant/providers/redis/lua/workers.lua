-- Returns who takes now: worker, about …
local out = {}
for _, taker in ipairs(call('ZRANGEBYSCORE', TAKERS, now - HOUR, '+inf')) do
  local known = call('HMGET', taker_of(taker), 'worker', 'about', 'lease')
  local last = tonumber(call('ZSCORE', TAKERS, taker))
  if known[1] and known[3] and last + tonumber(known[3]) >= now then
    out[#out + 1] = known[1]
    out[#out + 1] = known[2]
  end
end
return out
