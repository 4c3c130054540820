-- ARGV: how many to leave out, how many at most, ms that they are kept. The latest first, as many as make a good answer:
-- id, head, body …
local ids, out, bytes = call('ZREVRANGEBYSCORE', BURIED, '+inf', now - tonumber(ARGV[3]), 'LIMIT', ARGV[1], ARGV[2]), {}, 0
for _, id in ipairs(ids) do
  local head, body = call('HGET', BURIED_HEADS, id), call('HGET', BURIED_BODIES, id) or ''
  if head then
    bytes = bytes + #body
    if bytes > GIVEN and #out > 0 then break end
    head = read(head)
    local n = #out
    out[n + 1], out[n + 2], out[n + 3], out[n + 4], out[n + 5] = id, body, head[1], head[2], head[3]
    out[n + 6], out[n + 7] = head[4], string.format('%.3f', head[5])
  end
end
return out
