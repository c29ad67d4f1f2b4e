__device__ void produce_all(int p) {
  const u64 once = read_once_policy();
  Ring ring;
  for (int l = 0; l < L; l++) {
    const int y = T_LAYERS + l * Y_COUNT;
    in_format(QKV(), format_of(l, OF_QKV), [&](auto f) { produce<decltype(f), D, false, TEAM>(ring, p, share(QKV_ROWS / 2, 4 * l), y + Y_QKV, once); });
    produce_past(ring, p, past(kind_of(l)), ptr<char>(y + Y_KEYS), ptr<char>(y + Y_VALUES), once);
    in_format(O(), format_of(l, OF_O), [&](auto f) { produce<decltype(f), N_H, false, TEAM>(ring, p, share(D / 2, 4 * l + 1), y + Y_O, once); });
    in_format(GU(), format_of(l, OF_GU), [&](auto f) { produce<decltype(f), D, true, TEAM>(ring, p, share(F / 2, 4 * l + 2), y + Y_GU, once); });
    in_format(DOWN(), format_of(l, OF_DOWN), [&](auto f) { produce<decltype(f), F, false, TEAM>(ring, p, share(D / 2, 4 * l + 3), y + Y_DOWN, once); });
  }
  produce<FH, D, false, PW>(ring, p, share(V / 2, 4 * L), T_HEAD, once);
}

