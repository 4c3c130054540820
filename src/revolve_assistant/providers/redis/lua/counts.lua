-- ARGV: ms that buried tasks are kept, how many. Returns for each queue: name, pending, delayed, blocked, leased, buried, ms that the oldest pending has waited.
if call('EXISTS', BURIED) == 1 then unbury_old(tonumber(ARGV[1]), tonumber(ARGV[2])) end
local out = {}
for _, queue in ipairs(call('SMEMBERS', QUEUES)) do
  local ready = ready_of(queue)
  local pending, blocked, oldest = call('ZCARD', ready), 0, 0
  for _, name in ipairs(call('SMEMBERS', names_of(queue))) do
    blocked = blocked + call('ZCARD', parked_of(queue, name))
  end
  local from = '-inf'
  for _ = 1, 20 do -- the first of each priority that is there
    local first = call('ZRANGEBYSCORE', ready, from, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
    if not first then break end
    first = tonumber(first)
    oldest = math.max(oldest, (ticks() - first % BAND) / 100)
    from = first - first % BAND + BAND
  end
  local found = {
    pending, call('ZCARD', delayed_of(queue)), blocked, call('ZCARD', leased_of(queue)), call('ZCARD', buried_of(queue)),
  }
  if found[1] + found[2] + found[3] + found[4] + found[5] == 0 then
    call('SREM', QUEUES, queue)
  else
    out[#out + 1] = queue
    for i = 1, 5 do out[#out + 1] = found[i] end
    out[#out + 1] = math.floor(oldest)
  end
end
return out
