-- ARGV: id, who asks. Returns 1: it is removed (by this very caller, perhaps a moment ago), 0: nobody knows or has it.
local id, memory = ARGV[1], base .. ':cancelled:' .. ARGV[1]
if not remove(id, false) then return call('GET', memory) == ARGV[2] and 1 or 0 end
call('SET', memory, ARGV[2], 'PX', 60000)
return 1
