-- ARGV: id, who asks. Returns 1: it is removed (by this very caller, perhaps a moment ago), 0: nobody knows or has it.
local id, memory = ARGV[1], base .. ':cancelled:' .. ARGV[1]
local record = call('HGET', HEADS, id)
if not record then return call('GET', memory) == ARGV[2] and 1 or 0 end
local head = read(record)
local ends = call('ZSCORE', leased_of(head[QUEUE]), id)
if ends and tonumber(ends) > now then return 0 end
if ends then call('ZREM', leased_of(head[QUEUE]), id) else pick(head, id) end
call('HDEL', HEADS, id)
call('HDEL', BODIES, id)
free_key(head, id)
call('SET', memory, ARGV[2], 'PX', 60000)
return 1
