-- KEYS: a channel. ARGV: the place up to which it is forgotten (incarnation and place), or '': the whole.
local key, upto = KEYS[1], ARGV[1]
if upto == '' then
  if call('DEL', key) == 1 then call('PUBLISH', key, '') end
  return true
end
local incarnation, base, cap = head_of(key)
if incarnation == string.sub(upto, 1, 8) then
  local cut = unpack('>I6', upto, 9) - base
  if cut > 0 then
    local rest = call('GETRANGE', key, HEAD + cut, -1)
    cut = math.min(cut, call('STRLEN', key) - HEAD)
    call('SET', key, incarnation .. pack('>I6I6', base + cut, cap) .. rest, 'KEEPTTL')
  end
end
return true
