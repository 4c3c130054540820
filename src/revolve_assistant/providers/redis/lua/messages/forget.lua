-- KEYS: a channel. ARGV: the cursor of the last message that is forgotten, or '': the whole.
local key, upto = KEYS[1], ARGV[1]
if upto == '' then
  if call('DEL', key) == 1 then call('PUBLISH', key, '') end
  return true
end
local incarnation, base, cap = head_of(key)
if incarnation == string.sub(upto, 1, 8) then
  local total = call('STRLEN', key) - HEAD
  local cut = unpack('>I6', upto, 9) - base
  if cut > 0 and holds(key, base, base + total, upto) then
    local rest, life = call('GETRANGE', key, HEAD + cut, -1), call('PTTL', key)
    call('DEL', key) -- first, since it is allowed when memory is full, and what follows it in a script then too
    call('SET', key, incarnation .. pack('>I6I6', base + cut, cap) .. rest, 'PX', math.max(1, life))
  end
end
return true
