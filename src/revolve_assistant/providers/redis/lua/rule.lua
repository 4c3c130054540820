-- ARGV: name, then what changes: field, value ('' is none) …  Returns the whole rule: "paused concurrency rate per".
local name = ARGV[1]
local rule = {paused = '0', concurrency = '-', rate = '-', per = '1.0'}
local found = call('HGET', RULES, name)
if found then
  rule.paused, rule.concurrency, rule.rate, rule.per = string.match(found, '^(%S+) (%S+) (%S+) (%S+)$')
end
local counted = rule.concurrency ~= '-'
for i = 2, #ARGV, 2 do rule[ARGV[i]] = ARGV[i + 1] end
local text = rule.paused .. ' ' .. rule.concurrency .. ' ' .. rule.rate .. ' ' .. rule.per
if rule.paused == '0' and rule.concurrency == '-' and rule.rate == '-' then
  call('HDEL', RULES, name)
else
  call('HSET', RULES, name, text)
end
if rule.concurrency == '-' then
  call('UNLINK', running_of(name))
elseif not counted then -- from here on every take counts; what is taken already is counted once
  call('UNLINK', running_of(name))
  for _, queue in ipairs(call('SMEMBERS', QUEUES)) do
    local leased = call('ZRANGEBYSCORE', leased_of(queue), now, '+inf', 'WITHSCORES')
    for i = 1, #leased, 2 do
      local record = call('HGET', HEADS, leased[i])
      if record and read(record)[NAME] == name then
        call('ZADD', running_of(name), leased[i + 1], leased[i])
        call('PEXPIRE', running_of(name), math.ceil(leased[i + 1] - now) + HOUR)
      end
    end
  end
end
if rule.rate == '-' then call('UNLINK', started_of(name)) end
rouse_parks(name)
return text
