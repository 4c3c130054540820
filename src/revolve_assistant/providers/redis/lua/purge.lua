-- ARGV: queue, 1: the buried ones. Removes some tasks that nobody has taken; returns how many, and how many are left.
local queue = ARGV[1]
if ARGV[2] == '1' then
  local ids = call('ZRANGE', buried_of(queue), 0, SOME - 1)
  for _, id in ipairs(ids) do unbury(id) end
  call('ZREM', buried_of(queue), unpack(#ids > 0 and ids or {''}))
  return {#ids, call('ZCARD', buried_of(queue))}
end
local keys = {ready_of(queue), delayed_of(queue)}
for _, name in ipairs(call('SMEMBERS', names_of(queue))) do keys[#keys + 1] = parked_of(queue, name) end
local removed, left = 0, 0
for _, key in ipairs(keys) do
  local ids = removed < SOME and call('ZPOPMIN', key, SOME - removed) or {}
  local some = {}
  for i = 1, #ids, 2 do some[#some + 1] = ids[i] end
  if #some > 0 then
    for i, record in ipairs(call('HMGET', HEADS, unpack(some))) do
      if record then free_key(read(record), some[i]) end
    end
    call('HDEL', HEADS, unpack(some))
    call('HDEL', BODIES, unpack(some))
    removed = removed + #some
  end
  left = left + call('ZCARD', key)
end
for _, name in ipairs(call('SMEMBERS', names_of(queue))) do unparked(queue, name) end
return {removed, left}
