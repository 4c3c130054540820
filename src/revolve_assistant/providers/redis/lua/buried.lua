-- ARGV: how many to leave out, how many at most, ms that they are kept. The latest first, as many as make a good answer:
-- id, body, queue, deliveries, reason, name, when …
local ids, out, bytes = call('ZREVRANGEBYSCORE', BURIED, '+inf', now - tonumber(ARGV[3]), 'LIMIT', ARGV[1], ARGV[2]), {}, 0
for _, id in ipairs(ids) do
  local head, body = call('HGET', BURIED_HEADS, id), call('HGET', BURIED_BODIES, id) or ''
  if head then
    bytes = bytes + #body
    if bytes > GIVEN and #out > 0 then break end
    tell_buried(out, id, body, read(head))
  end
end
return out
