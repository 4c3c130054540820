-- ARGV: number of this request, of the last one that was answered, id. Returns as buried.lua, of a task that nobody has
-- taken or that is buried; the same request again gets the same.
local memory = base .. ':exhumed:' .. ARGV[1]
local done = call('GET', memory)
if done then return read(done) end
local id, out = ARGV[3], {}
call('UNLINK', base .. ':exhumed:' .. ARGV[2])
local head, body = remove(id, true)
if head then
  tell(out, id, body, head)
else
  body = call('HGET', BURIED_BODIES, id) or ''
  head = unbury(id)
  if not head then return out end
  tell_buried(out, id, body, head)
end
call('SET', memory, pack(out), 'PX', 60000)
return out
