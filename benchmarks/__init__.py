"""Foreword beside other software and on data sets: see `README.md` here."""
