def diagnose(url):
    return []
