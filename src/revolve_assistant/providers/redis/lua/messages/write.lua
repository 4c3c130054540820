-- KEYS: channels. ARGV: for each the messages, each after its length. A channel that is not there is passed over.
for i, key in ipairs(KEYS) do
  local incarnation, base, cap = head_of(key)
  if incarnation then
    local data = ARGV[i]
    local total = call('APPEND', key, data) - HEAD
    local notice = incarnation .. pack('>I6', base + total - #data)
    if total > cap then trim(key, incarnation, base, cap, total) end
    call('PUBLISH', key, #data <= TOLD and notice .. data or notice)
  end
end
return true
