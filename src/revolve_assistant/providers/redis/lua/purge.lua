-- ARGV: number of this request, of the last one that was answered, queue, 1: the buried ones, how many at most. Takes
-- out tasks that nobody has taken; returns some as buried.lua, none: there are none. The same request again gets the same.
local memory = base .. ':exhumed:' .. ARGV[1]
local done = call('GET', memory)
if done then return read(done) end
call('UNLINK', base .. ':exhumed:' .. ARGV[2])
local queue, limit, bytes, out = ARGV[3], math.min(tonumber(ARGV[5]), SOME), 0, {}

if ARGV[4] == '1' then
  for _, id in ipairs(call('ZRANGE', buried_of(queue), 0, limit - 1)) do
    local body = call('HGET', BURIED_BODIES, id) or ''
    bytes = bytes + #body
    if bytes > GIVEN and #out > 0 then break end
    local head = unbury(id)
    if head then tell_buried(out, id, body, head) else call('ZREM', buried_of(queue), id) end
  end
else
  local names = call('SMEMBERS', names_of(queue))
  local keys = {ready_of(queue), delayed_of(queue)}
  for _, name in ipairs(names) do keys[#keys + 1] = parked_of(queue, name) end
  for _, key in ipairs(keys) do
    local ids = limit > 0 and call('ZRANGE', key, 0, limit - 1) or {}
    for _, id in ipairs(ids) do
      local record, body = call('HGET', HEADS, id), call('HGET', BODIES, id) or ''
      bytes = bytes + #body
      if bytes > GIVEN and #out > 0 then
        limit = 0
        break
      end
      call('ZREM', key, id)
      if record then
        local head = read(record)
        call('HDEL', HEADS, id)
        call('HDEL', BODIES, id)
        free_key(head, id)
        tell(out, id, body, head)
        limit = limit - 1
      end
    end
  end
  for _, name in ipairs(names) do unparked(queue, name) end
end
if #out > 0 then call('SET', memory, pack(out), 'PX', 60000) end
return out
